/**
 * Tables as Postgres has them at the moment of a push: types exact enough to cast and to notice rounding, what the role
 * may do, which triggers and foreign keys act on a write. Read in the push's own transaction, so that a column that was
 * dropped a moment ago is a verdict and not an error.
 */
import * as Effect from "effect/Effect"
import { inOneGo, type PostgresError, type Session } from "../postgres/client.ts"
import { operatorOf, operatorsOf } from "../postgres/settings.ts"

export interface ColumnShape {
  readonly name: string
  /** `pg_attribute.attnum`: stays through a rename, and is never given again. */
  readonly number: number
  /** Castable, with its modifier: `"numeric(10,2)"`, `"public.phone"`. */
  readonly type: string
  /** The base type without modifier: `"numeric"`; a cast to it never cuts or rounds. */
  readonly base: string
  /** `pg_type.typname` of the base type: `"timestamptz"`. */
  readonly typname: string
  /** A length, precision or scale is declared for the column or its domain. */
  readonly isLimited: boolean
  readonly isDomain: boolean
  /** Operators of the base type's order, in full: `"OPERATOR(pg_catalog.=)"`. */
  readonly equals: string
  readonly greater: string
  readonly generated: boolean
}

export interface Shape {
  readonly name: string
  readonly oid: string
  readonly columns: ReadonlyMap<string, ColumnShape>
  readonly can: { readonly select: boolean; readonly insert: boolean; readonly update: boolean; readonly delete: boolean }
  /** The role that pushes run under, for the GRANT that a refusal names. */
  readonly role: string
  /** Triggers of the table's owner may store other values than were sent. */
  readonly hasTriggers: boolean
  /** Row security acts on the role: a row that it does not see may be there. */
  readonly isFiltered: boolean
}

/** A foreign key of `child` that points to `parent`. Actions as `pg_constraint` codes them: a, r, c, n, d. */
export interface Referencing {
  readonly child: string
  readonly columns: ReadonlyArray<string>
  readonly parent: string
  readonly to: ReadonlyArray<string>
  /** Between the parent's column and the child's, in full. */
  readonly operators: ReadonlyArray<string>
  readonly onDelete: string
  readonly onUpdate: string
  readonly canRead: boolean
}

/** Tables by schema and name, which their index finds. */
const NAMED = `unnest($1::text[], $2::text[]) AS w (schema, name) JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
         JOIN pg_catalog.pg_class c ON c.relname = w.name AND c.relnamespace = n.oid AND c.relkind = 'r'`

interface TableRow {
  readonly tbl: string
  readonly oid: string
  readonly role: string
  readonly s: boolean
  readonly i: boolean
  readonly u: boolean
  readonly d: boolean
  readonly triggers: boolean
  readonly filtered: boolean
}
const TABLES = `SELECT n.nspname || '.' || c.relname AS tbl, c.oid::text AS oid, current_user::text AS role,
              has_any_column_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS s, has_any_column_privilege(c.oid, 'INSERT') AS i,
              has_any_column_privilege(c.oid, 'UPDATE') AS u, has_table_privilege(c.oid, 'DELETE') AS d,
              EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D') AS triggers,
              row_security_active(c.oid) AS filtered
         FROM ${NAMED}`

interface ColumnRow {
  readonly tbl: string
  readonly name: string
  readonly number: number
  readonly type: string
  readonly base: string
  readonly typname: string
  readonly limited: boolean
  readonly domain: boolean
  readonly equals: string
  readonly greater: string
  readonly generated: boolean
}
const COLUMNS = `WITH RECURSIVE col AS (
         SELECT c.oid AS rel, n.nspname || '.' || c.relname AS tbl, a.attnum, a.attname, a.attgenerated <> '' AS generated, a.atttypid, a.atttypmod
           FROM ${NAMED} JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
       ), base AS (
         SELECT rel, attnum, atttypid AS typ, atttypmod AS typmod, false AS domain FROM col
         UNION ALL
         SELECT b.rel, b.attnum, t.typbasetype, greatest(t.typtypmod, b.typmod), true
           FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ AND t.typtype = 'd'
       )
       SELECT col.tbl, col.attname::text AS name, attnum::int AS number, format_type(col.atttypid, col.atttypmod) AS type, format_type(base.typ, -1) AS base, t.typname::text AS typname,
              base.typmod >= 0 AS limited, base.domain, col.generated,
              ${operatorOf("t.oid", 3)} AS equals, ${operatorOf("t.oid", 5)} AS greater
         FROM col JOIN base USING (rel, attnum) JOIN pg_catalog.pg_type t ON t.oid = base.typ WHERE t.typtype <> 'd' ORDER BY col.tbl, col.attnum`

export const readShapes = (session: Session, names: ReadonlyArray<string>): Effect.Effect<ReadonlyMap<string, Shape>, PostgresError> =>
  Effect.gen(function* () {
    const shapes = new Map<string, Shape & { readonly columns: Map<string, ColumnShape> }>()
    if (names.length === 0) return shapes
    const named = [names.map((name) => name.slice(0, name.indexOf("."))), names.map((name) => name.slice(name.indexOf(".") + 1))]
    // Under the hub's path, format_type qualifies every type that is not built in.
    const [tables, columns] = yield* inOneGo([session.query<TableRow>(TABLES, named), session.query<ColumnRow>(COLUMNS, named)])
    for (const row of tables) {
      const can = { select: row.s, insert: row.i, update: row.u, delete: row.d }
      shapes.set(row.tbl, {
        name: row.tbl,
        oid: row.oid,
        columns: new Map(),
        can,
        role: row.role,
        hasTriggers: row.triggers,
        isFiltered: row.filtered,
      })
    }
    for (const { tbl, limited, domain, ...column } of columns)
      shapes.get(tbl)?.columns.set(column.name, { ...column, isLimited: limited, isDomain: domain })
    return shapes
  })

/** The foreign keys, of whatever table, that point to these tables and do more than refuse. */
export const readReferencing = (session: Session, names: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Referencing>, PostgresError> =>
  Effect.map(
    session.query<{ child: string; cols: string; parent: string; target: string; operators: string; del: string; upd: string; readable: boolean }>(
      `SELECT cn.nspname || '.' || c.relname AS child, pn.nspname || '.' || p.relname AS parent, o.confdeltype::text AS del, o.confupdtype::text AS upd,
              has_any_column_privilege(c.oid, 'SELECT') AND has_schema_privilege(cn.oid, 'USAGE') AS readable,
              (SELECT json_agg(a.attname ORDER BY k.ord)::text FROM unnest(o.conkey) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.att) AS cols,
              (SELECT json_agg(a.attname ORDER BY k.ord)::text FROM unnest(o.confkey) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_attribute a ON a.attrelid = p.oid AND a.attnum = k.att) AS target,
              ${operatorsOf("o")} AS operators
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
         JOIN pg_class p ON p.oid = o.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
        WHERE o.contype = 'f' AND o.conparentid = 0 AND (o.confdeltype IN ('c', 'n', 'd') OR o.confupdtype IN ('c', 'n', 'd'))
          AND pn.nspname || '.' || p.relname = ANY ($1::text[])`,
      [names],
    ),
    (rows) =>
      rows.map((row) => ({
        child: row.child,
        columns: JSON.parse(row.cols),
        parent: row.parent,
        to: JSON.parse(row.target),
        operators: JSON.parse(row.operators),
        onDelete: row.del,
        onUpdate: row.upd,
        canRead: row.readable,
      })),
  )
