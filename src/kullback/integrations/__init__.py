"""Kullback's losses in other people's trainers. A module needs the library it is named after; none is loaded here."""
