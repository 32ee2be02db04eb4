async function viewTables(main) { main.append(heading('Tables')); }
