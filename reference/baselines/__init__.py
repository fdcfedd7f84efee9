"""The baselines that engines are measured against: torch and diffusers as contenders of a benchmark."""
