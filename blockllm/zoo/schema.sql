-- The catalogue of a zoo. Weights lie in packs; everything else is here.

CREATE TABLE model (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    kind        TEXT NOT NULL CHECK (kind IN ('full', 'lora')),
    family      TEXT NOT NULL,
    parent      INTEGER REFERENCES model (id),   -- the base of an adapter
    root        TEXT NOT NULL,                   -- where it was added from
    dtype       TEXT NOT NULL,
    max_context INTEGER NOT NULL,                -- tokens
    eos_ids     TEXT NOT NULL,                   -- JSON list
    created     REAL NOT NULL                    -- seconds since 1970
) STRICT;

CREATE TABLE tensor (
    hash   TEXT PRIMARY KEY,                     -- of dtype, shape and bytes
    dtype  TEXT NOT NULL,
    shape  TEXT NOT NULL,                        -- JSON list
    pack   TEXT NOT NULL,
    offset INTEGER NOT NULL                      -- bytes
) STRICT, WITHOUT ROWID;

CREATE INDEX tensor_pack ON tensor (pack);

CREATE TABLE layer (
    digest   TEXT PRIMARY KEY,
    function TEXT NOT NULL,                      -- JSON
    block    TEXT NOT NULL,                      -- derived: see partition.py
    place    INTEGER NOT NULL                    -- index in the block
) STRICT, WITHOUT ROWID;

CREATE TABLE layer_tensor (
    layer  TEXT NOT NULL REFERENCES layer (digest) ON DELETE CASCADE,
    name   TEXT NOT NULL,
    tensor TEXT NOT NULL REFERENCES tensor (hash),
    PRIMARY KEY (layer, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX layer_tensor_tensor ON layer_tensor (tensor);

CREATE TABLE model_layer (
    model    INTEGER NOT NULL REFERENCES model (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,                   -- 0 is the embedding
    layer    TEXT NOT NULL REFERENCES layer (digest),
    PRIMARY KEY (model, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX model_layer_layer ON model_layer (layer);

CREATE TABLE target (                            -- what an adapter adds to one module
    model    INTEGER NOT NULL REFERENCES model (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,                   -- of the layer in the model
    module   TEXT NOT NULL,
    a        TEXT NOT NULL REFERENCES tensor (hash),
    b        TEXT NOT NULL REFERENCES tensor (hash),
    bias     TEXT REFERENCES tensor (hash),
    scale    REAL NOT NULL,
    PRIMARY KEY (model, position, module)
) STRICT, WITHOUT ROWID;

CREATE TABLE asset (                             -- tokenizer files and the like
    model INTEGER NOT NULL REFERENCES model (id) ON DELETE CASCADE,
    file  TEXT NOT NULL,
    name  TEXT NOT NULL,                         -- of the file in assets/
    PRIMARY KEY (model, file)
) STRICT, WITHOUT ROWID;
