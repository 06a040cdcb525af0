-- Schema changes in stream order: an event trigger writes a row here, in the transaction of the DDL itself.

-- Names and objects whose DDL concerns the sync: written by the hub from the catalog. Several rows may name one table: itself,
-- its unique indexes, the types of its columns, its schema.
CREATE TABLE schoolbus.watched (
  oid  oid NOT NULL,
  name text NOT NULL,                    -- public.students
  PRIMARY KEY (oid, name)
);
CREATE INDEX watched_name ON schoolbus.watched (name);

CREATE TABLE schoolbus.schema_changes (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  command text NOT NULL,                 -- ALTER TABLE
  object  text NOT NULL,                 -- public.students
  at      timestamptz NOT NULL DEFAULT now()
);

-- Never the reason why a DDL fails: whatever goes wrong here is a warning, and the hub finds the change in the catalog.
-- Runs as its owner, so whoever issues the DDL needs no right in this schema.
CREATE FUNCTION schoolbus.note_schema_change() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  touched text;
BEGIN
  IF tg_event = 'sql_drop' THEN
    SELECT string_agg(DISTINCT d.object_identity, ', ') INTO touched
      FROM pg_event_trigger_dropped_objects() d
     WHERE NOT d.is_temporary
       AND EXISTS (SELECT 1 FROM schoolbus.watched w
                    WHERE (w.oid = d.objid AND w.oid <> 0) OR w.name = d.address_names[1] || '.' || d.address_names[2]);
  ELSE
    SELECT string_agg(DISTINCT c.object_identity, ', ') INTO touched
      FROM pg_event_trigger_ddl_commands() c
     WHERE EXISTS (SELECT 1 FROM schoolbus.watched w WHERE w.oid = c.objid AND w.oid <> 0)
        OR EXISTS (SELECT 1 FROM pg_index i JOIN schoolbus.watched w ON w.oid = i.indrelid WHERE i.indexrelid = c.objid AND i.indisunique)
        OR EXISTS (SELECT 1 FROM pg_inherits i JOIN schoolbus.watched w ON w.oid = i.inhparent WHERE i.inhrelid = c.objid)
        OR EXISTS (SELECT 1 FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
                     JOIN schoolbus.watched w ON w.name = n.nspname || '.' || r.relname WHERE r.oid = c.objid)
        OR EXISTS (SELECT 1 FROM pg_namespace n JOIN schoolbus.watched w ON split_part(w.name, '.', 1) = n.nspname
                    WHERE n.oid = c.objid AND c.classid = 'pg_namespace'::regclass);
  END IF;
  IF touched IS NOT NULL THEN
    INSERT INTO schoolbus.schema_changes (command, object) VALUES (tg_tag, touched);
  END IF;
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING 'schoolbus could not note %: %', tg_tag, SQLERRM;
END
$$;
