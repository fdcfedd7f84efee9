"""Pictures in and out: reference images read and fitted, PNG files with their parameters."""
