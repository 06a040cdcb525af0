-- Two small schools, the same rows every time: ids are made from names.
CREATE FUNCTION pg_temp.id_of(name text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT md5(name)::uuid $$;

INSERT INTO schools (id, name, district, opened_on, settings) VALUES
  ('north', 'North Primary', 'Kisumu', '1987-02-02', '{"weekend": ["saturday", "sunday"], "bell": "07:45"}'),
  ('south', 'South Primary', 'Kisii', '2004-01-12', '{"weekend": ["saturday", "sunday"], "bell": "08:00"}');

INSERT INTO academic_years (id, name, starts_on, ends_on, is_current) VALUES
  (pg_temp.id_of('2025'), '2025', '2025-01-06', '2025-11-28', false),
  (pg_temp.id_of('2026'), '2026', '2026-01-05', '2026-11-27', true);

INSERT INTO subjects (id, code, name)
SELECT pg_temp.id_of(code), code, name
  FROM (VALUES ('ENG', 'English'), ('KIS', 'Kiswahili'), ('MAT', 'Mathematics'), ('SCI', 'Science'), ('SST', 'Social studies')) AS s (code, name);

INSERT INTO users (id, school_id, username, full_name, role, password_hash) VALUES
  (pg_temp.id_of('office'), NULL, 'office', 'Head Office', 'administrator', 'scrypt$32768$8$3$b2ZmaWNl$c2NyeXB0');
INSERT INTO users (id, school_id, username, full_name, role, password_hash)
SELECT pg_temp.id_of(s.id || role), s.id, s.id || '.' || role, initcap(role) || ' of ' || s.name, role::user_role, 'scrypt$32768$8$3$c2FsdA$' || md5(s.id || role)
  FROM schools s, unnest(ARRAY['head', 'teacher', 'clerk']) AS role;

INSERT INTO classes (id, school_id, academic_year_id, name, teacher_id)
SELECT pg_temp.id_of(s.id || grade), s.id, pg_temp.id_of('2026'), 'Grade ' || grade, pg_temp.id_of(s.id || 'teacher')
  FROM schools s, generate_series(1, 4) AS grade;

-- Forty pupils a school; three in four have a card.
INSERT INTO students (id, school_id, class_id, admission_no, full_name, gender, born_on, phone, address, guardians, rfid_card_id)
SELECT pg_temp.id_of(s.id || n), s.id, pg_temp.id_of(s.id || (n % 4 + 1)), to_char(n, 'FM0000'),
       first[n % 8 + 1] || ' ' || last[(n + length(s.id) + ascii(s.id)) % 7 + 1],
       (CASE WHEN n % 2 = 0 THEN 'female' ELSE 'male' END)::gender,
       date '2014-01-15' + n * 23,
       CASE WHEN n % 5 > 0 THEN '07' || to_char(11000000 + n * 7919, 'FM00000000') END,
       'Plot ' || n || ', ' || s.district,
       jsonb_build_array(jsonb_build_object('name', 'Guardian ' || n, 'relation', 'mother')),
       CASE WHEN n % 4 > 0 THEN (CASE s.id WHEN 'north' THEN 71000000 ELSE 72000000 END + n * 131)::text END
  FROM schools s, generate_series(1, 40) AS n,
       (SELECT ARRAY['Amina', 'Brian', 'Chebet', 'David', 'Esther', 'Faraj', 'Grace', 'Hassan'] AS first,
               ARRAY['Okafor', 'Wanjiru', 'Otieno', 'Kiplagat', 'Mwangi', 'Nyambura', 'Abdi'] AS last) AS names;

INSERT INTO enrolments (id, school_id, student_id, class_id, academic_year_id, enrolled_on)
SELECT pg_temp.id_of(id || '2026'), school_id, id, class_id, pg_temp.id_of('2026'), '2026-01-05' FROM students;

INSERT INTO marks (id, school_id, student_id, subject_id, teacher_id, term, score, marked_at)
SELECT pg_temp.id_of(s.id || j.code), s.school_id, s.id, j.id, pg_temp.id_of(s.school_id || 'teacher'), 1,
       round(40 + (ascii(substr(s.id::text, 1, 1)) * 7 + ascii(j.code) * 13) % 600 / 10.0, 2), '2026-04-10 09:00:00+00'
  FROM students s, subjects j;

INSERT INTO attendance (id, school_id, student_id, class_id, day, status)
SELECT pg_temp.id_of(s.id || d::text), s.school_id, s.id, s.class_id, d::date,
       (CASE WHEN (ascii(substr(s.id::text, 2, 1)) + extract(day FROM d)::int) % 13 = 0 THEN 'absent' ELSE 'present' END)::attendance_status
  FROM students s, generate_series(timestamp '2026-05-04', timestamp '2026-05-08', interval '1 day') AS d;

INSERT INTO payments (id, school_id, student_id, amount, method, reference, paid_at)
SELECT pg_temp.id_of('fee' || id), school_id, id, 4500.00, 'mobile_money', upper(left(md5('fee' || id), 10)), '2026-01-08 10:30:00+00' FROM students;

INSERT INTO announcements (id, school_id, title, body, is_pinned, published_at)
SELECT pg_temp.id_of('welcome' || id), id, 'Term dates', 'Term two begins on Monday, 4 May.', true, '2026-04-20 06:00:00+00' FROM schools;

INSERT INTO audit_logs (id, school_id, actor, action, detail, at)
SELECT pg_temp.id_of('opened' || id), id, 'office', 'school.opened', jsonb_build_object('name', name), '2026-01-02 08:00:00+00' FROM schools;
