"""The error that quantising each linear costs, and the search for a recipe."""
