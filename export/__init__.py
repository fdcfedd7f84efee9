"""From a checkpoint to a bundle: graphs, lowering passes, weights, and how close the result is."""
