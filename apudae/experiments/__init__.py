"""The recorded studies, as tables, and what runs them."""
