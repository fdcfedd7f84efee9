"""The toolkit of report pages (HTML, plots, pictures) and the page of `bench`."""
