"""Training hash weights: capture q and k of a model, learn W per layer, measure, save."""
