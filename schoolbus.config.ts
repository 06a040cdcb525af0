/**
 * The rules of the example school (sql/example): which tables are synced, which rows a school sees, who wins when both sides
 * wrote the same thing. Copy it, put your own tables in, and start the hub with `--config`.
 */
import { defineConfig } from "./src/config.ts"

/** Rows whose school_id is the school's id. */
const own = { column: "school_id" } as const

export default defineConfig({
  tables: {
    // Written at head office, read everywhere.
    schools: { audience: "all", direction: "down", priority: "high" },
    academic_years: { audience: "all", direction: "down", priority: "high" },
    subjects: { audience: "all", direction: "down", priority: "high" },

    // Administration: head office has the last word; a password belongs to whoever changed it last.
    users: { audience: own, priority: "high", strategy: "vps_wins", columns: { password_hash: "newest_wins" }, exclude: ["last_login"] },
    classes: { audience: own, priority: "high", strategy: "vps_wins" },
    students: { audience: own, priority: "high", strategy: "vps_wins", columns: { phone: "newest_wins", medical_notes: "manual" } },
    enrolments: { audience: own, priority: "high", strategy: "vps_wins" },

    // The school sees who is there; head office counts the money; the last correction of a mark is the right one.
    attendance: { audience: own, priority: "critical", strategy: "school_wins" },
    payments: { audience: own, priority: "high", strategy: "vps_wins" },
    marks: { audience: own, priority: "medium", strategy: "newest_wins" },

    announcements: { audience: own, priority: "low", strategy: "vps_wins" },
    audit_logs: { audience: own, direction: "up", priority: "background", strategy: "school_wins" },
  },
  devices: {
    people: {
      students: {
        id: "id",
        name: "full_name",
        card: "rfid_card_id",
        active: "is_active",
        group: { column: "class_id", table: "classes", name: "name" },
      },
    },
    attendance: { table: "attendance", person: "student_id", at: "punched_at" },
  },
})
