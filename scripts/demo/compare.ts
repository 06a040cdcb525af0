/** Whether all sides hold the same: Postgres, both school files and the terminal, value by value, read past schoolbus. */
import type { School, Stage } from "./stage.ts"

/** Tables of the example school whose rows come down; `all`: every school holds every row. */
const TABLES: ReadonlyArray<readonly [table: string, whose: "all" | "own"]> = [
  ["schools", "all"],
  ["academic_years", "all"],
  ["subjects", "all"],
  ["users", "own"],
  ["classes", "own"],
  ["students", "own"],
  ["enrolments", "own"],
  ["marks", "own"],
  ["attendance", "own"],
  ["payments", "own"],
  ["announcements", "own"],
]

/** Rows as text, sorted: in Postgres as it prints them, in the file as SQLite prints the stored form of the same. */
const compareTable = async (
  stage: Stage,
  school: School,
  table: string,
  whose: "all" | "own",
  except: ReadonlySet<string>,
): Promise<true | string> => {
  const columns = await stage.sql<{ name: string; type: string }[]>`
    SELECT column_name AS name, data_type AS type FROM information_schema.columns
     WHERE table_schema = 'public' AND table_name = ${table} ORDER BY ordinal_position`
  // Booleans are 0 and 1 in the file.
  const cells = columns.map(({ name, type }) => (type === "boolean" ? `"${name}"::int::text` : `"${name}"::text`))
  const where = whose === "own" ? `WHERE school_id = '${school.id}'` : ""
  const theirs = await stage.sql.unsafe(`SELECT ${cells.join(", ")} FROM "${table}" ${where}`).values()
  const mine = school.rows(`SELECT ${columns.map(({ name }) => `CAST("${name}" AS TEXT) AS "${name}"`).join(", ")} FROM "${table}"`)
  const texts = (rows: ReadonlyArray<ReadonlyArray<unknown>>): ReadonlyArray<string> =>
    rows
      .filter((row) => !except.has(String(row[0])))
      .map((row) => JSON.stringify(row))
      .sort()
  const office = texts(theirs)
  const file = texts(mine.map((row) => columns.map(({ name }) => row[name])))
  if (office.length !== file.length) return `${table}: ${office.length} rows in Postgres, ${file.length} at ${school.id}`
  const at = office.findIndex((row, i) => row !== file[i])
  return at === -1 || `${table}: Postgres ${office[at]}, ${school.id} ${file[at]}`
}

/** `except`: keys of rows that wait for a person at this school. */
export const sameRows = async (stage: Stage, school: School, except: ReadonlySet<string>): Promise<true | string> => {
  for (const [table, whose] of TABLES) {
    const answer = await compareTable(stage, school, table, whose, except)
    if (answer !== true) return answer
  }
  return true
}

/** The terminal holds exactly the active pupils with a card. */
export const samePeople = async (stage: Stage): Promise<true | string> => {
  const wanted = await stage.sql<{ name: string; card: string }[]>`
    SELECT full_name AS name, rfid_card_id AS card FROM students WHERE school_id = 'north' AND is_active AND rfid_card_id IS NOT NULL`
  // A terminal shows 24 bytes of a name.
  const line = (name: string, card: string): string => `${card} ${name.slice(0, 24)}`
  const office = wanted.map(({ name, card }) => line(name, card)).sort()
  const held = stage.terminal
    .users()
    .map(({ name, card }) => line(name, card.replace(/[[\]]/g, "")))
    .sort()
  if (office.join("\n") === held.join("\n")) return true
  const missing = office.filter((one) => !held.includes(one))
  const extra = held.filter((one) => !office.includes(one))
  return `${missing.length} missing (${missing[0] ?? ""}), ${extra.length} too many (${extra[0] ?? ""})`
}
