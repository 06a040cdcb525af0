/** `sync`: sync now, this node, some tables, one school or all of them. */
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input, usage } from "./options.ts"

interface Result {
  readonly success: boolean
  readonly message: string
  readonly run: number | null
  readonly schools: ReadonlyArray<string>
}

export const run = async (input: Input, io: Io): Promise<number> => {
  const direction = input.text("direction")
  if (!["both", "up", "down"].includes(direction)) throw usage(`--direction must be both, up or down, not ${direction}`)
  const school = input.textOr("school", null)
  const result = await apiOf(input).post<Result>("/api/sync/trigger", {
    direction,
    tables: input.list("tables"),
    ...(school === null ? {} : { school }),
  })
  if (input.flag("json")) io.out(`${JSON.stringify(result)}\n`)
  else io.out(`${result.message}${result.schools.length === 0 ? "" : ` (${result.schools.join(", ")})`}\n`)
  if (!result.success) io.err("see: schoolbus status\n")
  return result.success ? EXIT.ok : EXIT.again
}
