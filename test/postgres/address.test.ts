import { expect, it } from "vitest"
import { addressOf } from "../../src/postgres/address.ts"
import { remedyOf } from "../../src/postgres/remedy.ts"

const readable = (text: string): string => {
  const { host, port, user, password, database, tls } = addressOf(text)
  return [
    user,
    password ?? "-",
    host,
    port,
    database,
    tls === false ? "plain" : tls.rejectUnauthorized ? (tls.checkServerIdentity ? "ca" : "full") : "any",
  ].join(" ")
}

it.each([
  ["postgres://u:p@h/d", "u p h 5432 d plain"],
  ["postgresql://u@h:6000/d?sslmode=disable", "u - h 6000 d plain"],
  ["postgres://u:p%40ss%2Fw%3A%23%3F%25%20%C3%BC@h/d", "u p@ss/w:#?% ü h 5432 d plain"],
  ["postgres://u@h/d%20e", "u - h 5432 d e plain"],
  ["postgres://u@h/", "u - h 5432 u plain"],
  ["postgres://u@[::1]:5433/d", "u - ::1 5433 d plain"],
  ["postgres:///d?host=/var/run/postgresql&user=u", "u - /var/run/postgresql 5432 d plain"],
  ["postgres://u@/d?host=/var/run/postgresql&port=5433&sslmode=require", "u - /var/run/postgresql 5433 d plain"],
  ["postgres://u:p@%2Fvar%2Frun%2Fpostgresql:5433/d", "u p /var/run/postgresql 5433 d plain"],
  ["postgres://u@h/d?sslmode=require", "u - h 5432 d any"],
  ["postgres://u@h/d?sslmode=verify-ca", "u - h 5432 d ca"],
  ["postgres://u@h/d?sslmode=verify-full", "u - h 5432 d full"],
  ["postgres://u@h/d?sslrootcert=system", "u - h 5432 d full"],
])("%s is %s", (text, expected) => {
  expect(readable(text)).toBe(expected)
})

it.each([
  ["postgres://u:p#w@h/d", /in a password @/],
  ["postgres://u:p/w@h/d", /in a password @/],
  ["postgres://u:p@ss/w?rd@h:1:2/d", /in a password @/],
  ["postgres://u:p%zz@h/d", /written as %25/],
  ["postgres://u@h/d?sslmode=on", /sslmode=on is none: use/],
  ["postgres://u@h/d?sslmode=verify-ca&sslrootcert=/no/such.pem", /sslrootcert: the file \/no\/such.pem cannot be read/],
])("%s is refused with the reason, and without its password", (text, reason) => {
  expect(() => addressOf(text)).toThrow(reason)
})

it("an address that pg_hba.conf does not let in, perhaps for want of encryption, is told from a refused password", () => {
  expect(remedyOf("28000", 'no pg_hba.conf entry for host "::1", user "u", database "d", SSL encryption')).toContain("a line of pg_hba.conf")
  expect(remedyOf("28000", 'no pg_hba.conf entry for host "::1", user "u", database "d", no encryption')).toContain("?sslmode=require")
  expect(remedyOf("28P01", 'password authentication failed for user "u"')).toContain("password")
})

it("a limit of the role is told from that of the server", () => {
  expect(remedyOf("53300", 'too many connections for role "u"')).toContain("CONNECTION LIMIT")
  expect(remedyOf("53300", "sorry, too many clients already")).toContain("max_connections")
})

it("a standby is told from a server that is not set up", () => {
  expect(remedyOf("55000", "recovery is in progress")).toContain("the address of the primary")
  expect(remedyOf("55000", "logical decoding requires wal_level >= logical")).toBeNull()
})
