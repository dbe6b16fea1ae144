"What every other module needs: errors, text, processes, progress, files, records; no torch, and only the standard library for a server."
