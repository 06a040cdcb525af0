INSERT INTO schools (id, name) VALUES ('north', 'North Primary'), ('south', 'South Primary');
INSERT INTO academic_years (id, name, starts_on, ends_on) VALUES ('10000000-0000-4000-8000-000000000001', '2026/27', '2026-09-01', '2027-07-15');
INSERT INTO subjects (id, code, name) VALUES
  ('20000000-0000-4000-8000-000000000001', 'MAT', 'Mathematics'), ('20000000-0000-4000-8000-000000000002', 'ENG', 'English');
INSERT INTO users (school_id, username, full_name, role, password_hash) VALUES
  ('north', 'grace', 'Grace Wanjiru', 'teacher', 'scrypt$n'), ('south', 'peter', 'Peter Otieno', 'head', 'scrypt$s');
INSERT INTO classes (id, school_id, academic_year_id, name) VALUES
  ('30000000-0000-4000-8000-000000000001', 'north', '10000000-0000-4000-8000-000000000001', '4A'),
  ('30000000-0000-4000-8000-000000000002', 'south', '10000000-0000-4000-8000-000000000001', '4A');
INSERT INTO students (id, school_id, class_id, full_name, rfid_card_id, born_on, details)
  SELECT format('40000000-0000-4000-8000-%s', lpad(i::text, 12, '0'))::uuid, CASE WHEN i % 2 = 1 THEN 'north' ELSE 'south' END,
         CASE WHEN i % 2 = 1 THEN '30000000-0000-4000-8000-000000000001' ELSE '30000000-0000-4000-8000-000000000002' END::uuid,
         'Pupil ' || i, (1000000 + i)::text, date '2016-01-01' + i, jsonb_build_object('number', i)
    FROM generate_series(1, 60) AS i;
INSERT INTO enrolments (school_id, student_id, class_id) SELECT school_id, id, class_id FROM students;
INSERT INTO marks (school_id, student_id, subject_id, points) SELECT school_id, id, '20000000-0000-4000-8000-000000000001', 50 + (details->>'number')::int / 2.0 FROM students;
INSERT INTO payments (school_id, student_id, amount, due_on) SELECT school_id, id, 1250.50, date '2026-12-01' FROM students;
INSERT INTO announcements (title, body) VALUES ('Welcome', 'The new year begins on 1 September.');
