"""The judge of `shapes`: it decides by rules on pixels whether a picture shows its prompt."""
