"""Input and output of pictures: reading and fitting of reference images, and PNG files with parameters."""
