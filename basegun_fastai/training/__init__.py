"A training: its options, its stages, what it leaves."
