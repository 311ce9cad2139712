"""What the trainers of several methods share: a layer's captures as they see them, and losses."""
