async function viewTimeline(main) { main.append(heading('Timeline')); }
