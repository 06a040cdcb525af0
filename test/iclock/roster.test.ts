import fc from "fast-check"
import { describe, expect, it } from "vitest"
import { cutName } from "../../src/iclock/command.ts"
import { type ForeignUser, type Held, type Person, type Roster, rosterSteps, rosterTriggers } from "../../src/iclock/roster.ts"
import { manifestOf } from "../support/school-file.ts"
import { rules, students } from "./node.ts"

const person = (id: string, more: Partial<Person> = {}): Person => ({
  table: "public.students",
  id,
  name: `N${id}`,
  card: null,
  pin: null,
  group: null,
  ...more,
})
const held = (pin: string, id: string, more: Partial<Held> = {}): Held => ({
  pin,
  table: "public.students",
  id,
  name: `N${id}`,
  card: null,
  status: "synced",
  removing: false,
  differs: false,
  unsent: false,
  ...more,
})
const roster = (more: Partial<Roster>): Roster => ({
  people: [],
  held: [],
  taken: new Map(),
  foreign: [],
  unknown: new Set(),
  policy: "keep",
  letters: false,
  again: "nothing",
  ...more,
})
const owner = (id: string, here = true) => ({ table: "public.students", id, here })
const user = (pin: string, more: Partial<ForeignUser> = {}): ForeignUser => ({ pin, card: null, privileged: false, ...more })
const show = (input: Partial<Roster>): ReadonlyArray<string> =>
  rosterSteps(roster(input)).map((step) =>
    step.kind === "add"
      ? `+${step.pin} ${step.person.id}`
      : step.kind === "remove"
        ? `-${step.held.pin} ${step.held.id}`
        : `${step.kind} ${step.pin}`,
  )

describe("pins", () => {
  it.each([
    ["the next free number", { people: [person("a"), person("b")], taken: new Map([["4", owner("x")]]) }, ["+5 a", "+6 b"]],
    ["a numeric id", { people: [person("1201"), person("b")] }, ["+1201 1201", "+1202 b"]],
    ["what the row names, before any number is given", { people: [person("a"), person("b", { pin: "0001" })] }, ["+1 b", "+2 a"].reverse()],
    ["a number for a name with letters", { people: [person("a", { pin: "A17" }), person("b", { pin: "9" })] }, ["+10 a", "+9 b"]],
    [
      "the letters where the terminal reads them",
      { letters: true, people: [person("a", { pin: "A17" }), person("b", { pin: "x".repeat(25) })] },
      ["+A17 a", "+1 b"],
    ],
    [
      "a number, not the letters of another terminal",
      { people: [person("a", { pin: "A17" })], taken: new Map([["A17", owner("a", false)]]) },
      ["+1 a"],
    ],
    [
      "the letters instead of a number as soon as the terminal shows them",
      { letters: true, people: [person("a", { pin: "A17" })], taken: new Map([["5", owner("a")]]), held: [held("5", "a")] },
      ["-5 a", "+A17 a"],
    ],
    ["never what another has or had", { people: [person("a", { pin: "7" })], taken: new Map([["7", owner("gone")]]) }, ["+8 a"]],
    [
      "the old one for who comes back",
      {
        people: [person("a")],
        taken: new Map([
          ["3", owner("a")],
          ["9", owner("b")],
        ]),
      },
      ["+3 a"],
    ],
    ["none of the terminal's own users", { people: [person("a")], foreign: [user("5")] }, ["+6 a"]],
    ["never 0", { people: [person("0")] }, ["+1 0"]],
    ["a number where the row names none that could be one", { people: [person("a", { pin: "A-7" })] }, ["+1 a"]],
  ] as ReadonlyArray<[string, Partial<Roster>, ReadonlyArray<string>]>)("%s", (_, input, steps) =>
    expect([...show(input)].sort()).toEqual([...steps].sort()),
  )

  it("a row that names another pin moves the person there and takes the old one off", () => {
    const steps = show({ people: [person("a", { pin: "20" })], held: [held("10", "a")], taken: new Map([["10", owner("a")]]) })
    expect(steps).toEqual(["-10 a", "+20 a"])
  })
})

describe("differences", () => {
  const taken = new Map([["1", owner("a")]])
  it.each([
    ["nothing when all is as it should be", { people: [person("a")], held: [held("1", "a")] }, []],
    ["a new name", { people: [person("a", { name: "New" })], held: [held("1", "a")] }, ["+1 a"]],
    ["a new card", { people: [person("a", { card: "5" })], held: [held("1", "a")] }, ["+1 a"]],
    ["somebody who left", { held: [held("1", "a")] }, ["-1 a"]],
    ["nothing for who is being removed", { held: [held("1", "a", { removing: true, status: "sent" })] }, []],
    ["nothing for who is gone", { held: [held("1", "a", { removing: true, status: "deleted" })] }, []],
    ["who comes back while being removed", { people: [person("a")], held: [held("1", "a", { removing: true, status: "sent" })] }, ["+1 a"]],
    ["who is missing on the terminal", { people: [person("a")], held: [held("1", "a", { differs: true })] }, ["+1 a"]],
    ["nothing for what failed, by itself", { people: [person("a")], held: [held("1", "a", { status: "failed" })] }, []],
    ["what failed, at a verification", { people: [person("a")], held: [held("1", "a", { status: "failed" })], again: "failed" }, ["+1 a"]],
    ["a removal that failed, at a verification", { held: [held("1", "a", { status: "failed", removing: true })], again: "failed" }, ["-1 a"]],
    ["everyone, at a full sync", { people: [person("a")], held: [held("1", "a")], again: "everyone" }, ["+1 a"]],
  ] as ReadonlyArray<[string, Partial<Roster>, ReadonlyArray<string>]>)("%s", (_, input, steps) => expect(show({ taken, ...input })).toEqual(steps))
})

it("any people on any terminal: no pin is shared, none changes its owner, and a second look finds nothing", () => {
  const ids = fc.constantFrom("a", "b", "c", "1", "2", "12", "300")
  const people = fc.uniqueArray(
    fc.record({ id: ids, pin: fc.option(fc.constantFrom("1", "2", "012", "7", "x")), name: fc.string({ maxLength: 4 }) }),
    { selector: (p) => p.id },
  )
  fc.assert(
    fc.property(fc.array(people, { minLength: 1, maxLength: 5 }), fc.uniqueArray(fc.constantFrom("1", "3", "8")), (rounds, foreign) => {
      const taken = new Map<string, { table: string; id: string; here: boolean }>()
      let now = new Map<string, Held>()
      for (const round of rounds) {
        const input = () =>
          roster({ people: round.map((p) => person(p.id, p)), held: [...now.values()], taken, foreign: foreign.map((pin) => user(pin)) })
        for (const step of rosterSteps(input())) {
          if (step.kind === "remove") {
            now.set(step.held.pin, { ...step.held, removing: true, status: "deleted" })
            continue
          }
          if (step.kind !== "add") throw new Error(step.kind)
          expect(taken.get(step.pin)?.id ?? step.person.id).toBe(step.person.id)
          taken.delete(step.pin)
          taken.set(step.pin, owner(step.person.id))
          now.set(step.pin, held(step.pin, step.person.id, { name: cutName(step.person.name) }))
        }
        const present = [...now.values()].filter((entry) => !entry.removing)
        expect(present.map((entry) => entry.id).sort()).toEqual(round.map((p) => p.id).sort())
        expect(rosterSteps(input())).toEqual([])
        now = new Map(now)
      }
    }),
    { numRuns: 300 },
  )
})

it("triggers name the columns of the rule only, and never fail the statement that fires them", () => {
  const triggers = rosterTriggers({ ...manifestOf([students]), devices: rules })
  expect(triggers.map((trigger) => trigger.name)).toEqual([
    "schoolbus_roster_students_i",
    "schoolbus_roster_students_u",
    "schoolbus_roster_students_d",
  ])
  expect(triggers[1]?.sql).toBe(
    'CREATE TRIGGER "schoolbus_roster_students_u" AFTER UPDATE OF "id", "full_name", "rfid_card_id", "is_active", "class_id" ON "students" BEGIN ' +
      "INSERT INTO schoolbus_roster_dirty (tbl, taken) SELECT 'students', 0 WHERE NOT EXISTS (SELECT 1 FROM schoolbus_roster_dirty WHERE tbl = 'students' AND taken = 0); END",
  )
  expect(rosterTriggers(manifestOf([students]))).toEqual([])
})
