"Photos: read, checked, split and kept; no torch."
