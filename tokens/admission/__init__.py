"""Admission: key names, periods, the scripts that count, and the connection that calls them."""
