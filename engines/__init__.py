"""Contracts of the components and the engines that run the components."""
