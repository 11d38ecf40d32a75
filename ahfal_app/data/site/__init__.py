"""A site's own images: files, their ids, and what cannot be used."""
