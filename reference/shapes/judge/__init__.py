"""The judge of `shapes`: whether a picture shows its prompt, by rules on pixels."""
