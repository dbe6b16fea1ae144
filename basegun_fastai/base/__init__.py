"What every module needs; no torch."
