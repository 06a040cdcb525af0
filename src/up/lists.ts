/** Many rows as parameters of one statement: one text array per column, unnested side by side as `u (u0, u1, …)`. */
import { ident } from "../postgres/client.ts"

type Texts = ReadonlyArray<string | null>

export const unnest = (rows: ReadonlyArray<Texts>, width: number) => {
  const columns = Array.from({ length: width }, (_, i) => i)
  return {
    from: `unnest(${columns.map((i) => `$${i + 1}::text[]`).join(", ")}) AS u (${columns.map((i) => `u${i}`).join(", ")})`,
    params: columns.map((i) => rows.map((row) => row[i] ?? null)),
    width,
  }
}

/** `t."id" = u.u0::uuid AND …`; `first`: the position of the first value. */
export const matching = (columns: ReadonlyArray<string>, types: ReadonlyArray<string>, first = 0): string =>
  columns.map((name, i) => `t.${ident(name)} = u.u${first + i}::${types[i]}`).join(" AND ")

/** Values as one text, to look rows up by. */
export const tupleText = (values: Texts): string => JSON.stringify(values)
