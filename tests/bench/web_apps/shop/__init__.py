"""A small Django project: the admin's apps are installed, one view renders ten rows from SQLite in a template."""
