-- Since format 2: what a lossy model loses against another. Goes with the model; outlives the other.

CREATE TABLE measurement (
    model     INTEGER NOT NULL REFERENCES model (id) ON DELETE CASCADE,
    reference TEXT NOT NULL,                     -- name of the other model
    text      TEXT NOT NULL,                     -- hash of the text measured on
    value     TEXT NOT NULL,                     -- JSON of core.Measurement
    PRIMARY KEY (model, reference, text)
) STRICT, WITHOUT ROWID;
