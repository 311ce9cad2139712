"""Training hash weights: capture q, k and v of a model, learn W per layer, measure, save."""
