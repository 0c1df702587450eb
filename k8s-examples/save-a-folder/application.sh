printf 'day,celsius\nmon,12\ntue,19\nwed,15\n' > /output/week.csv
