"""Accuracy of fewer evaluations: solvers, and a cache of the step's blocks, at equal evaluations of the network."""
