"""Training in shards: each device keeps its part of the weights, of their gradients and of the optimizer's state."""
