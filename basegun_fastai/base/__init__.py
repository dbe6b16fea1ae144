"What every other module needs: errors, text, processes, progress, files, records; no torch."
