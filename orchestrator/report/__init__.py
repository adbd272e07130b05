"""One HTML file about a search, a campaign or an experiment, that needs nothing beside itself."""
