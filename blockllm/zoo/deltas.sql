-- Since format 3: targets of every kind, models of any kind, and findings; blocks are derived.

ALTER TABLE layer DROP COLUMN block;
ALTER TABLE layer DROP COLUMN place;

CREATE TABLE new_model (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    kind        TEXT NOT NULL,                   -- full, lora, …, see core.ModelCard
    family      TEXT NOT NULL,
    parent      INTEGER REFERENCES model (id),   -- the base of an adapter
    root        TEXT NOT NULL,                   -- where it was added from
    dtype       TEXT NOT NULL,
    max_context INTEGER NOT NULL,                -- tokens
    eos_ids     TEXT NOT NULL,                   -- JSON list
    created     REAL NOT NULL,                   -- seconds since 1970
    exact       INTEGER NOT NULL                 -- 0: computes something else than what was added
) STRICT;

INSERT INTO new_model SELECT *, id NOT IN (
    SELECT model FROM model_layer l JOIN layer_tensor t ON t.layer = l.layer
    JOIN tensor ON hash = tensor WHERE dtype = 'I8'
) FROM model;
DROP TABLE model;
ALTER TABLE new_model RENAME TO model;

ALTER TABLE target RENAME TO old_target;

CREATE TABLE target (                            -- what a model changes at one module
    id       INTEGER PRIMARY KEY,
    model    INTEGER NOT NULL REFERENCES model (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,                   -- of the layer in the model
    module   TEXT NOT NULL,
    place    INTEGER NOT NULL,                   -- among the targets of the module
    value    TEXT NOT NULL,                      -- JSON of core.Target without its tensors
    UNIQUE (model, position, module, place)
) STRICT;

CREATE TABLE target_tensor (
    target INTEGER NOT NULL REFERENCES target (id) ON DELETE CASCADE,
    part   TEXT NOT NULL,
    tensor TEXT NOT NULL REFERENCES tensor (hash),
    PRIMARY KEY (target, part)
) STRICT, WITHOUT ROWID;

CREATE INDEX target_tensor_tensor ON target_tensor (tensor);

INSERT INTO target (model, position, module, place, value)
    SELECT model, position, module, 0, printf('{"kind":"lora","scale":%!.17g}', scale)
    FROM old_target;
INSERT INTO target_tensor SELECT id, 'a', a FROM old_target o
    JOIN target t USING (model, position, module);
INSERT INTO target_tensor SELECT id, 'b', b FROM old_target o
    JOIN target t USING (model, position, module);
INSERT INTO target_tensor SELECT id, 'bias', bias FROM old_target o
    JOIN target t USING (model, position, module) WHERE bias IS NOT NULL;
DROP TABLE old_target;

CREATE TABLE finding (                           -- what was found out by computing
    kind    TEXT NOT NULL,                       -- equivalence, surrogate, profile, …
    subject TEXT NOT NULL,
    object  TEXT NOT NULL,
    value   TEXT NOT NULL,                       -- JSON
    created REAL NOT NULL,                       -- seconds since 1970
    PRIMARY KEY (kind, subject, object)
) STRICT, WITHOUT ROWID;
