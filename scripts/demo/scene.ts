/** What the acts of the scenario share: the stage, what was found, and how both sides are read. */
import { equal, type Facts, type Probe } from "./facts.ts"
import type { Cell, School, Stage } from "./stage.ts"

export const uuid = (): string => crypto.randomUUID()
export const soon = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

export interface Scene {
  readonly stage: Stage
  readonly facts: Facts
  /** Keys of rows that wait for a person in north. */
  readonly waiting: Set<string>
  readonly office: (sql: string, ...params: ReadonlyArray<string>) => Promise<ReadonlyArray<Readonly<Record<string, unknown>>>>
}

interface Nameable {
  readonly id: string
  readonly full_name: string
}

/** Pupils of a school, always in the same order. */
export const pupils = async ({ office }: Scene, school: string, where = "true"): Promise<ReadonlyArray<Nameable>> =>
  (await office(
    `SELECT id::text AS id, full_name FROM students WHERE school_id = $1 AND ${where} ORDER BY admission_no`,
    school,
  )) as unknown as ReadonlyArray<Nameable>

export const one = async ({ office }: Scene, sql: string, ...params: ReadonlyArray<string>): Promise<unknown> => {
  const [row] = await office(sql, ...params)
  return row === undefined ? null : (Object.values(row)[0] ?? null)
}

export const first = (school: School, sql: string, ...args: ReadonlyArray<Cell>): unknown => {
  const [row] = school.rows(sql, ...args)
  return row === undefined ? null : (Object.values(row)[0] ?? null)
}

/** The same value in Postgres and in the school's file. */
export const bothHave =
  (scene: Scene, school: School, table: string, column: string, id: string, wanted: string | null): Probe =>
  async () =>
    equal(
      {
        office: await one(scene, `SELECT ${column}::text FROM ${table} WHERE id = $1::uuid`, id),
        school: first(school, `SELECT CAST(${column} AS TEXT) FROM ${table} WHERE id = ?`, id),
      },
      { office: wanted, school: wanted },
    )
