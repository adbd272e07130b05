"""A search: its file, its space, who proposes and who stops trials, what becomes of them."""
