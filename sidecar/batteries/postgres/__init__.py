"""Databases as versioned artifacts. So far: what a cluster says of itself."""
