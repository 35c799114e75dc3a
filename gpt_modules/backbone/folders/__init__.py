"""A model as a folder: found, read, checked and written all or nothing, in the forms that others open."""
