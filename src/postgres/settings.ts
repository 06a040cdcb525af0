/**
 * Under which settings the hub's sessions work, and what names mean in them. The hub's own SQL asks only what is Postgres' own or
 * written in full, whatever a database, a role or somebody who may create in a schema puts into the search_path. Code of head office
 * (triggers, checks of domains, index expressions) counts on the path that the role has by itself: where it runs, that one is in force.
 */

/**
 * Under these settings Postgres prints a value in one way only, and understands ours as they are meant: a database or a role may have
 * others as its own. Limits of time are ours too, for what must be done takes as long as it takes. A statement is planned for the rows
 * that it is given: a plan that was made for few of them, or when the table was small, takes minutes for thousands.
 */
const PRINTING = {
  TimeZone: "UTC",
  DateStyle: "ISO, MDY",
  IntervalStyle: "iso_8601",
  bytea_output: "hex",
  extra_float_digits: "1",
  client_encoding: "UTF8",
  array_nulls: "on",
  standard_conforming_strings: "on",
  transform_null_equals: "off",
  quote_all_identifiers: "off",
  xmloption: "content",
} as const

export const SESSION = {
  ...PRINTING,
  statement_timeout: "0",
  lock_timeout: "0",
  idle_in_transaction_session_timeout: "0",
  idle_session_timeout: "0",
  plan_cache_mode: "force_custom_plan",
} as const

/** Temporary tables come last: unsaid, they come first. */
export const HUB_PATH = "pg_catalog, pg_temp"

/**
 * Not among the settings that a connection begins with, for those are what DEFAULT means. Without triggers and foreign keys, which
 * `replica` turns off, rows would be written that head office's rules refuse.
 */
export const SETTLE = `SET search_path = ${HUB_PATH};
  SELECT set_config('session_replication_role', 'origin', false) WHERE current_setting('session_replication_role') = 'replica'`

/** In a transaction: from here on names mean what they mean to head office's programs. */
export const TO_OFFICE = "SET LOCAL search_path TO DEFAULT"

/** For SQL of head office that cannot be written in full: its own path, after Postgres' own names. */
export const TO_BOTH = `SELECT set_config('search_path', concat_ws(', ', 'pg_catalog', nullif(reset_val, '')), true) FROM pg_settings WHERE name = 'search_path'`

/** A function, table, type or column that is not found. */
const UNKNOWN_NAME = /^(42883|42P01|42704|42703)$/

/**
 * Code of head office in the midst of SQL that cannot be written in full (event triggers of a DDL, expressions of generated columns) finds
 * what it needs under any path, as the restore of a dump asks of it. If it does not, this is worth another try, after `TO_BOTH`.
 */
export const isUnderOtherPath = (error: { readonly sqlstate?: string }): boolean => UNKNOWN_NAME.test(error.sqlstate ?? "")

/** Back again, whatever a trigger has set meanwhile. */
export const TO_HUB = [...Object.keys(PRINTING).map((name) => `SET LOCAL ${name} TO DEFAULT`), `SET LOCAL search_path = ${HUB_PATH}`].join("; ")

/** Triggers may wait for the commit; what they set for the session ends with it. */
export const COMMIT = `${TO_OFFICE}; COMMIT; RESET ALL; ${SETTLE}`

/** Types that are words of SQL itself, as `format_type` prints them. */
const WORDS = /^(bigint|bit|boolean|character|double precision|integer|interval|numeric|real|smallint|time|timestamp)\b/

/** Of a type as `format_type` prints it under the hub's path: only those of other schemas have one. */
export const isBuiltIn = (type: string): boolean => !/^("(?:[^"]|"")+"|[^".]+)\./.test(type)

/** A type in full: `"uuid[]"` -> `"pg_catalog.uuid[]"`, `"public.phone"` and `"integer"` as they are. */
export const inFull = (type: string): string => (WORDS.test(type) || !isBuiltIn(type) ? type : `pg_catalog.${type}`)

/** `=` in full; of other than Postgres' own types (citext) it is that of their order, which is asked of the catalog. */
export const EQUALS = "OPERATOR(pg_catalog.=)"

/** SQL: an operator of the B-tree order of a type, in full; `strategy` 3: `=`, 4: `>=`, 5: `>`. Types without an order of their own have Postgres'. */
export const operatorOf = (type: string, strategy: 3 | 4 | 5): string =>
  `coalesce((SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM pg_catalog.pg_opclass c
     JOIN pg_catalog.pg_amop a ON a.amopfamily = c.opcfamily AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype AND a.amopstrategy = ${strategy}
     JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
    WHERE c.opcintype = ${type} AND c.opcdefault AND c.opcmethod = (SELECT m.oid FROM pg_catalog.pg_am m WHERE m.amname = 'btree')),
     'OPERATOR(pg_catalog.${[">=", ">"][strategy - 4] ?? "="})')`

/** SQL: those by which a foreign key compares, as a JSON list in the order of its columns; `constraint`: a row of `pg_constraint`. */
export const operatorsOf = (constraint: string): string =>
  `(SELECT json_agg(format('OPERATOR(%I.%s)', n.nspname, r.oprname) ORDER BY k.ord)::text FROM unnest(${constraint}.conpfeqop) WITH ORDINALITY AS k (op, ord)
     JOIN pg_catalog.pg_operator r ON r.oid = k.op JOIN pg_catalog.pg_namespace n ON n.oid = r.oprnamespace)`
