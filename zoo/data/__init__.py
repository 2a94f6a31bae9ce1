"""What is read from and written for people: items, tables, journals, pairs, tar shards, templates, subtitles."""
