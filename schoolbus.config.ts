import { defineConfig } from "./src/config.ts"

/** The example school of `sql/example`: who sees which rows, which way they travel, who wins. */
export default defineConfig({
  tables: {
    schools: { audience: "all", direction: "down", priority: "critical" },
    academic_years: { audience: "all", direction: "down", priority: "high" },
    subjects: { audience: "all", direction: "down", priority: "high" },
    announcements: { audience: "all", direction: "down", priority: "low" },
    users: { audience: { column: "school_id" }, priority: "critical", strategy: "vps_wins", columns: { password_hash: "newest_wins", last_login: "school_wins" } },
    classes: { audience: { column: "school_id" }, priority: "high", strategy: "vps_wins" },
    students: { audience: { column: "school_id" }, priority: "high", strategy: "vps_wins", columns: { phone: "newest_wins", full_name: "manual" } },
    enrolments: { audience: { column: "school_id" }, priority: "medium", strategy: "vps_wins" },
    marks: { audience: { column: "school_id" }, priority: "medium", strategy: "newest_wins" },
    attendance: { audience: { column: "school_id" }, priority: "high", strategy: "school_wins" },
    payments: { audience: { column: "school_id" }, priority: "medium", strategy: "vps_wins" },
    audit_logs: { audience: { column: "school_id" }, priority: "background", strategy: "school_wins" },
  },
  devices: {
    people: { students: { id: "id", name: "full_name", card: "rfid_card_id", active: "is_active", group: "class_id" } },
    attendance: { table: "attendance", person: "student_id", at: "punched_at" },
  },
})
