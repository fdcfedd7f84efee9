"""The export of a checkpoint to a bundle: graphs, lowering passes, weights, and parity with the reference."""
