"""Files of graphs before an engine reads them: weights that are links to another folder."""
