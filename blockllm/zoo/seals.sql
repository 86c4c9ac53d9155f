-- Since format 5: checksums over all that the rows of a model or a finding say, see seals.py.

ALTER TABLE model ADD COLUMN seal TEXT NOT NULL DEFAULT '';
ALTER TABLE finding ADD COLUMN seal TEXT NOT NULL DEFAULT '';
