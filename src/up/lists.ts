/** Many rows as parameters of one statement: one text array per column, unnested side by side as `u (u0, u1, …)`. */
import { ident } from "../postgres/client.ts"
import { EQUALS, inFull } from "../postgres/settings.ts"
import type { ColumnShape, Shape } from "./shape.ts"

type Texts = ReadonlyArray<string | null>

/** In full, so that it means the same under every path. */
export const listsOf = (width: number): string => {
  const columns = Array.from({ length: width }, (_, i) => i)
  return `ROWS FROM (${columns.map((i) => `pg_catalog.unnest($${i + 1}::pg_catalog.text[])`).join(", ")}) AS u (${columns.map((i) => `u${i}`).join(", ")})`
}

export const unnest = (rows: ReadonlyArray<Texts>, width: number) => {
  const columns = Array.from({ length: width }, (_, i) => i)
  return {
    from: listsOf(width),
    params: columns.map((i) => rows.map((row) => row[i] ?? null)),
    width,
  }
}

/** A text as a value of the column, which is neither cut nor rounded to fit; in full, so that it means the same under every path. */
export const asKey = (column: ColumnShape | undefined, text: string): string => `${text}::${inFull(column?.base ?? "text")}`

/** A text as the column stores it. */
export const asStored = (column: ColumnShape | undefined, text: string): string => `${text}::${inFull(column?.type ?? "text")}`

/** `"id" OPERATOR(pg_catalog.=) $1::pg_catalog.text::pg_catalog.uuid`, by the order of the column's type. */
export const equals = (column: ColumnShape | undefined, left: string, text: string): string =>
  `${left} ${column?.equals ?? EQUALS} ${asKey(column, text)}`

/** The operator for values of two columns, which a foreign key may tie together. */
export const between = (left: ColumnShape | undefined, right: ColumnShape | undefined): string =>
  left !== undefined && left.base === right?.base ? left.equals : EQUALS

/** `t."id" OPERATOR(pg_catalog.=) u.u0::pg_catalog.uuid AND …`; `first`: the position of the first value. */
export const matching = (shape: Shape | undefined, columns: ReadonlyArray<string>, first = 0): string =>
  columns.map((name, i) => equals(shape?.columns.get(name), `t.${ident(name)}`, `u.u${first + i}`)).join(" AND ")

/** Values as one text, to look rows up by. */
export const tupleText = (values: Texts): string => JSON.stringify(values)
