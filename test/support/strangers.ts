/**
 * SQL that makes a schema `strange` and puts it before everything in the search_path of the database: functions, operators, types,
 * tables and a collation under the names of Postgres' own. Whatever asks one of them fails and says which. The right to create in a
 * schema of the path, or one setting of a role, is all that somebody needs for it.
 */
export const strangersFirst = (database: string): string => `
  CREATE SCHEMA strange;
  GRANT USAGE ON SCHEMA strange TO public;
  CREATE FUNCTION strange.told(what pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION 'strange % was asked', what; END $f$;
  DO $do$
  DECLARE
    one record;
  BEGIN
    FOR one IN SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind IN ('r', 'v') LOOP
      EXECUTE format('CREATE VIEW strange.%I AS SELECT strange.told(%L) AS told', one.relname, one.relname);
    END LOOP;
    FOR one IN SELECT p.proname, (SELECT string_agg(t::regtype::text, ', ' ORDER BY n) FROM unnest(p.proargtypes) WITH ORDINALITY AS x (t, n)) AS args
                 FROM pg_catalog.pg_proc p
                WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind IN ('f', 'a') AND NOT (p.prokind = 'a' AND p.pronargs = 0)
                  AND NOT EXISTS (SELECT 1 FROM unnest(p.proargtypes) AS a (t) JOIN pg_catalog.pg_type t ON t.oid = a.t
                                   WHERE t.typtype = 'p' AND t.typname NOT IN ('anyelement', 'anyarray', 'record')) LOOP
      EXECUTE format('CREATE FUNCTION strange.%I(%s) RETURNS pg_catalog.text LANGUAGE plpgsql AS %L', one.proname, one.args,
        format('BEGIN PERFORM strange.told(%L); END', one.proname));
    END LOOP;
    CREATE FUNCTION strange.unnest(pg_catalog.text[]) RETURNS SETOF pg_catalog.text LANGUAGE plpgsql AS $f$ BEGIN PERFORM strange.told('unnest'); END $f$;
    FOR one IN SELECT o.oprname, o.oprleft::regtype::text AS l, o.oprright::regtype::text AS r, row_number() OVER () AS n FROM pg_catalog.pg_operator o
                WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft <> 0 AND o.oprleft::regtype::text !~ 'any|record' AND o.oprright::regtype::text !~ 'any|record' LOOP
      EXECUTE format('CREATE FUNCTION strange.op_%s(%s, %s) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $f$ BEGIN RETURN strange.told(%L); END $f$', one.n, one.l, one.r, one.oprname);
      EXECUTE format('CREATE OPERATOR strange.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = strange.op_%s)', one.oprname, one.l, one.r, one.n);
    END LOOP;
    FOR one IN SELECT t.typname FROM pg_catalog.pg_type t WHERE t.typname IN ('text', 'uuid', 'json', 'jsonb', 'oid', 'regclass', 'int2', 'int4', 'int8', 'float8', 'bytea', 'date', 'timestamptz', 'pg_lsn') LOOP
      EXECUTE format('CREATE DOMAIN strange.%I AS pg_catalog.%I CHECK (strange.told(%L))', one.typname, one.typname, one.typname);
    END LOOP;
    CREATE COLLATION strange."C" FROM pg_catalog."POSIX";
  END $do$;
  ALTER DATABASE "${database}" SET search_path = strange, public, pg_catalog;`
