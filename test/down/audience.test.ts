import { expect, test } from "vitest"
import { ConfigRefused, type ConfigInput, parseConfig } from "../../src/config.ts"
import { EVERY_SCHOOL, meetingValue, NOBODY, placed, planRoutes, streamedTables } from "../../src/down/audience.ts"
import { tokenize, tokenText } from "../../src/down/body.ts"
import type { Audience, Direction, Table } from "../../src/model/table.ts"

const problems = (tables: ConfigInput["tables"]): ReadonlyArray<string> => {
  const config = parseConfig("test", { tables })
  return config instanceof ConfigRefused ? config.problems : []
}

test("a through rule names tables with or without their schema", () => {
  const config = parseConfig("test", {
    tables: {
      pupils: { audience: { through: "enrolments", on: { id: "pupil_id" } } },
      "public.enrolments": { audience: { column: "school" } },
      "library.loans": { audience: { through: "public.pupils", on: { pupil: "id" } } },
    },
  })
  if (config instanceof ConfigRefused) throw config
  expect(config.tables.map(({ name, audience }) => [name, audience])).toEqual([
    ["public.pupils", { through: "public.enrolments", on: { id: "pupil_id" } }],
    ["public.enrolments", { column: "school" }],
    ["library.loans", { through: "public.pupils", on: { pupil: "id" } }],
  ])
})

test("all rules that lead nowhere are refused at once, each with its remedy", () => {
  const through = (table: string): Audience => ({ through: table, on: { a: "b" } })
  const found = problems({
    one: { audience: through("two") },
    two: { audience: through("one") },
    self: { audience: through("self") },
    lost: { audience: through("nowhere") },
    peek: { audience: through("schoolbus.school_keys") },
    into: { audience: through("two") },
  })
  expect(found).toEqual([
    'tables.public.one.audience: public.one -> public.two -> public.one goes round in a circle, so no row has a school; give one of them "all" or a column',
    'tables.public.self.audience: public.self -> public.self goes round in a circle, so no row has a school; give one of them "all" or a column',
    "tables.public.lost.audience: rows are placed through public.nowhere, which is not synced; list it under tables",
    "tables.public.peek.audience: rows cannot be placed through schoolbus.school_keys, which is the sync's own; name one of your tables",
  ])
})

test("a table is listed once, and only one of the user's own", () => {
  const all = { audience: "all" } as const
  expect(problems({ pupils: all, "public.pupils": all, "schoolbus.schools": all, "pg_catalog.pg_class": all })).toEqual([
    "tables.public.pupils: is the same table as tables.pupils; list it once",
    "tables.schoolbus.schools: is the sync's own and comes to the schools by itself; take it out of the config",
    "tables.pg_catalog.pg_class: belongs to Postgres itself; list tables of your own",
  ])
})

test("an audience that is none of the three is answered with their forms", () => {
  for (const audience of [{ through: "two" }, { through: "two", on: {} }, { col: "x" }, "some", { column: "a", through: "b", on: { a: "b" } }]) {
    expect(problems({ one: { audience: audience as Audience }, two: { audience: "all" } })[0]).toMatch(/^tables\.one\.audience(\.on)?: must be "all"/)
  }
})

const table = (name: string, audience: Audience, direction: Direction = "both"): Table => ({
  name,
  local: name,
  columns: ["id", "a", "b"].map((column) => ({ name: column, kind: "text", type: "text", notNull: false, generated: false })),
  key: ["id"],
  unique: [],
  references: [],
  audience,
  direction,
  priority: "medium",
  strategy: "vps_wins",
  columnStrategies: {},
  system: false,
})

test("links are placed before the rows that they place, whatever the order of the tables", () => {
  const tables = [
    table("c", { through: "b", on: { a: "id" } }),
    table("b", { through: "a", on: { a: "id", b: "b" } }),
    table("other", "all"),
    table("a", { column: "a" }),
  ].map((one, i) => ({ id: i + 1, table: one }))
  const routes = planRoutes(tables)
  expect([...routes].map(([id, route]) => [id, route.level])).toEqual(
    expect.arrayContaining([
      [1, 2],
      [2, 1],
      [4, 0],
    ]),
  )
  expect(routes.has(3)).toBe(false)
  expect(routes.get(2)?.own).toMatchObject({ rule: 2, link: 4, columns: [{ position: 1 }, { position: 2 }] })
  expect(routes.get(4)?.places).toMatchObject([{ rule: 2, columns: [{ position: 0 }, { position: 2 }] }])
})

test("rows that only go up are read when they place rows that come down, and only then", () => {
  const up = [table("marks", "all", "up"), table("links", { through: "more", on: { a: "id" } }, "up"), table("more", { column: "a" }, "up")]
  expect([...streamedTables(up)]).toEqual([])
  expect([...streamedTables([...up, table("rows", { through: "links", on: { id: "a" } }, "down")])].sort()).toEqual(["links", "more", "rows"])
})

test("rows meet by what Postgres prints; NULL meets nothing", () => {
  const side = (kinds: ReadonlyArray<"int" | "bigint" | "text" | "bool" | "bytea">) => ({
    rule: 1,
    columns: kinds.map((kind, position) => ({ kind, position })),
  })
  const value = (kind: "int" | "bigint" | "text" | "bool" | "bytea", token: string) => meetingValue(side([kind]), [token])
  expect(value("int", "5")).toBe(value("bigint", '"5"'))
  expect(value("int", "5")).toBe(value("text", '"5"'))
  expect(value("bool", "true")).toBe(value("text", '"t"'))
  expect(value("bytea", '"00ff"')).toBe(value("text", '"\\\\x00ff"'))
  expect(value("text", '"5 "')).not.toBe(value("int", "5"))
  expect(value("text", "null")).toBeNull()
  expect(value("text", '"null"')).not.toBeNull()
  expect(meetingValue(side(["text", "text"]), ['"a"', "null"])).toBeNull()
  expect(meetingValue(side(["text", "text"]), ['"a\\",\\"b"', '"c"'])).not.toBe(meetingValue(side(["text", "text"]), ['"a"', '"b\\",\\"c"']))
})

test("every school holds all others; nobody is whoever is left", () => {
  expect(placed([])).toEqual([NOBODY])
  expect(placed([NOBODY, NOBODY])).toEqual([NOBODY])
  expect(placed([7, NOBODY, 3, 7])).toEqual([3, 7])
  expect(placed([7, EVERY_SCHOOL, 3])).toEqual([EVERY_SCHOOL])
})

test("a body is cut into its tokens as they stand", () => {
  const tokens = ['"a,]\\"["', "1.50", "null", "true", '{"k":[1,2]}', '""']
  expect(tokenize(`[${tokens.join(",")}]`)).toEqual(tokens)
  expect(tokenize("[]")).toEqual([])
  expect(tokenText("text", '"a\\u00e9"')).toBe("aé")
})
